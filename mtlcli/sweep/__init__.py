"""Many runs for one comparison: which ones, where they are trained, what became of each."""

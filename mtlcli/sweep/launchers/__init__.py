"""Where the runs of a comparison are trained: one file each, chosen by `mtl compare --launcher`."""

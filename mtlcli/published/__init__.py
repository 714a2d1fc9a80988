"""Published numbers as data: one YAML file a table, the reader that checks it, and ours against theirs.

table = published.get("office_31")            # or the path of a YAML file of one's own
published.compare(table, report, [run.settings for run in runs])
"""

from mtlcli.published.gaps import compare, differences, match
from mtlcli.published.table import Published, get, names

__all__ = ["Published", "compare", "differences", "get", "match", "names"]

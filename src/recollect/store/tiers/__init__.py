"""Places an entry can lie: one file each, all with the contract of `base.py`."""

"""What `tools/readme.py` writes between the markers: one function of the repository per block."""

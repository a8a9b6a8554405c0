"""The one reader of foreign text: whatever a file holds, it is read within bounds or refused.

JSON, YAML, Parquet, npy, npz, safetensors, torch's archives, tar headers: sizes, depth, numbers and
counts are checked before anything is allocated, and every failure becomes one sentence with the
file's name. Nothing outside this package calls their parsers.

`trusted` is the one door to code that is chosen by a name.
"""

"""The parts of teacher pretraining; `pipeline/pretrain.py` is the script."""

"""SS-GAN: rotations beside the hinge, with the baselines it is compared with."""

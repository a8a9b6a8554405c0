"""BigBiGAN, generator and encoder; imports `teachers.gan`, its BigGAN and what they may."""

"""One family of denoising networks per file; imports `diffusion.schedules` and `recording`."""

"""One kind of image source per file; imports `pipeline.images.source`."""

"""Make features: teachers look at images on Ray actors; imports `storage` and the ground."""

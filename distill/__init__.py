"""Use features: distil recorded features into students, and measure what the students learned."""

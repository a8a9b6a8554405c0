"""Own images in three commands: look at a source, write its recipes, go through their stages.

look (what the images are) -> presets (which teacher, levels, timestep and student fit) -> writing
(recipes with a reason beside every choice) -> begin (`dreamshard init`); chain (`dreamshard run`).
May import every package.
"""

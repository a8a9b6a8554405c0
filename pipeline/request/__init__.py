"""What is asked for: settings, resolved into a recipe, a plan, a dataset; imports `teachers`,
`images` and `cluster`.
"""

"""What `import dreamshard` offers: datasets to look into, the commands as functions, students.

May import every package, each when it is asked for: `import dreamshard` itself loads nothing.
"""

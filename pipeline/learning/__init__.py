"""Networks that this package itself trains, and the loop that trains them; imports `teachers` and
`images`.
"""

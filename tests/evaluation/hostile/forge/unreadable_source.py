"""Is a program only up to a byte that none may hold. \ud800"""

add = "\ud800"

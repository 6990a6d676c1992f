"""Is this what was sealed, and do dump, binary and symbols belong together?"""

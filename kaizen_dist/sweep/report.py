"""x"""


def write_page(out, s, f):
    return out

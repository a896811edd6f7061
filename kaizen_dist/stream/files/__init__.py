"""Images that lie in folders, tars and tables: listed once, read by number."""

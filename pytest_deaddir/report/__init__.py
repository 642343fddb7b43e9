"""How people see an audit: one small module per format, each from the same plain data."""

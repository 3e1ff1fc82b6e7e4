"""One inference backend per file; each verifies what it really got."""

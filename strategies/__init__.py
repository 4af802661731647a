"""One file a method: the listing is the catalogue."""

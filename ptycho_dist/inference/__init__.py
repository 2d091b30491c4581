"""From a bundle and a scan to a picture of the object."""

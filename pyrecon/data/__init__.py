"""Raw-data containers, preprocessing, phantoms and datasets."""

"""One folder for each architecture: configuration, modeling, and processing where it has its own."""

"""For readers: the report as one HTML page, and a denoising played in the terminal."""

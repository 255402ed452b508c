"""What every part needs: checks of input, files, downloads."""

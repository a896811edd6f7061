"""What every room uses: errors, files, locks, random numbers, the terminal."""

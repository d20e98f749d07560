"""What every room uses: errors, figures, hashes, intervals, folders that appear whole; it knows no other room."""

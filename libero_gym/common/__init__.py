"""What every room uses: checks of arguments, files that appear whole, the cache, versions; it knows no other room."""

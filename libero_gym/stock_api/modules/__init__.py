"""Files that imports of LIBERO's modules find once `install_stock_api` was called."""

"""The parts of `forty_tasks.py`: cells, the work behind them, what it takes, and the report."""

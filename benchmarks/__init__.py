"""What the gateway costs, beside Node's socket.io and stock python-socketio, in one run: ``python -m benchmarks``."""

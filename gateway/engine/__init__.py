"""What runs under the doors: python-socketio and python-engineio, and all that touches their internals."""

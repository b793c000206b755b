"""What is sent to users on an application's behalf."""

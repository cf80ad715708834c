"""The admin address: HTTP for people and programs that look at a running server or client, or steer it."""

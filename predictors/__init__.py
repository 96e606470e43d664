"""Cost without running: latency tables fed by measurements on the target device."""

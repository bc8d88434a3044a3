"""The two drivers: threads over a synchronous client, tasks over an asynchronous one. They act and decide nothing."""

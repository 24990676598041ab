# Install rules are completed together with tests/consumer.

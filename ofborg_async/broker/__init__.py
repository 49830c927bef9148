"""AMQP: the only room that imports aio-pika, and below it aiormq, its protocol layer, and pamqp, its frames.

aio-pika's objects carry connection, channels, topology, consuming, settling and publishing. Below them are only the
making of a connection (``dial``), what the broker says and aio-pika does not pass on (``frametap``, the end of a
consumer in ``intake``), the exceptions (``refusals``), and log lines in bulk (``linechannel``).

Plain connections with our own backoff (``link``), jobs in (``intake``), results and log lines out (``publisher``).
Foreign exceptions are translated once (``refusals``), so that callers see the errors of ``ofborg_async.errors`` only.
"""

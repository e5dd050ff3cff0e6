"""What Prometheus is told of a store: made when it asks, from what the machines count anyway.

No label names an agent or a key: their number is not bounded.
"""

from cenote.telemetry.metrics import exposition as exposition

"""``doctor``: every requirement of the operating guide checked on this host, each with its cause and its remedy.

Looks and asks; it changes nothing but for the sandbox's self-test, which builds one tiny derivation (``sandbox``).
"""

from ofborg_async.doctor.examination import examine_host
from ofborg_async.doctor.findings import Finding, Group, Report, Verdict

__all__ = ["Finding", "Group", "Report", "Verdict", "examine_host"]

"""What ``/metrics`` says, read as Prometheus reads it."""

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]


class MetricsPage:
    """One scrape.

    Attributes:
        types: Type of each metric, by the name under which it is exported.
        values: Value of each series, by name and labels.
    """

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.types[sample.name] = family.type
                self.values[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of all series that have these labels, among others.

        Raises:
            KeyError: There is none.
        """
        wanted = frozenset(labels.items())
        found = [v for (n, have), v in self.values.items() if n == name and wanted <= have]
        if not found:
            raise KeyError(name, labels)
        return sum(found)

    @property
    def labels(self) -> set[tuple[str, str]]:
        """Every label with each of its values."""
        return {pair for _, labels in self.values for pair in labels}


async def scrape(client: httpx.AsyncClient) -> MetricsPage:
    """Read ``/metrics``."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    return MetricsPage(response.text)

"""The usage as FOCUS 1.0, the form in which clouds report costs (FinOps Open Cost and Usage Specification). Pure.

A row is what one team has used of one model on one backend within an hour: its time on runners and in loads, times the
price of an hour of a runner. A model that is loaded and idle is nobody's, so that it has no row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from router.core.teams.usage import HOUR_S

Row = Mapping[str, int | str]

BY = ("hour", "team", "model", "backend")
"""What the usage is summed by for it."""

NAME, UNIT = "ollama-router", "Hours"
COLUMNS = (
    "AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd",
    "ChargePeriodStart", "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName",
    "CommitmentDiscountStatus", "CommitmentDiscountType", "ConsumedQuantity", "ConsumedUnit", "ContractedCost",
    "ContractedUnitPrice", "EffectiveCost", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory",
    "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "RegionId", "RegionName", "ResourceId",
    "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "SkuId", "SkuPriceId", "SubAccountId",
    "SubAccountName", "Tags", "x_Requests", "x_TokensIn", "x_TokensOut",
    # The names that drafts had for five of them: the validator of FOCUS (1.0.0) asks for these.
    "ChargeType", "InvoiceIssuer", "Provider", "Publisher", "ResourceID",
)  # fmt: skip


class Price(NamedTuple):
    """What an hour of a runner costs."""

    runner_hour: float = 0.0
    currency: str = "USD"


FREE = Price()


def as_focus(rows: Sequence[Row], price: Price) -> bytes:
    """Return rows by hour, team, model and backend as CSV with a line of titles."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(_charge(row, price) for row in rows)
    return text.getvalue().encode()


def _charge(row: Row, price: Price) -> dict[str, str | int]:
    hours = Decimal(int(row["card_ms"]) + int(row["load_ms"])) / (1000 * HOUR_S)
    per_hour = Decimal(str(price.runner_hour))
    return {
        **_who(row),
        **_when(int(row["hour"])),
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), _number(hours * per_hour)),
        **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), _number(per_hour)),
        **dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), _number(hours)),
        **dict.fromkeys(("ConsumedUnit", "PricingUnit"), UNIT),
        "BillingCurrency": price.currency,
        **dict.fromkeys(("ChargeCategory", "ChargeType"), "Usage"),
        "ChargeFrequency": "Usage-Based",
        "PricingCategory": "Standard",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Inference",
        "SkuId": "runner-hour",
        "SkuPriceId": f"runner-hour {price.currency}",
        "Tags": "{}",
        "x_Requests": int(row["requests"]),
        "x_TokensIn": int(row["tokens_in"]),
        "x_TokensOut": int(row["tokens_out"]),
    }


def _who(row: Row) -> dict[str, str]:
    team, model, backend = str(row["team"]), str(row["model"]), str(row["backend"])
    names = ("InvoiceIssuerName", "InvoiceIssuer", "ProviderName", "Provider", "PublisherName", "Publisher")
    return {
        **dict.fromkeys((*names, "BillingAccountId", "BillingAccountName"), NAME),
        **dict.fromkeys(("SubAccountId", "SubAccountName"), team),
        **dict.fromkeys(("ResourceId", "ResourceID"), f"{backend}/{model}"),
        "ResourceName": model,
        "ResourceType": "Model",
        "ChargeDescription": f"{model} on {backend}",
    }


def _when(hour: int) -> dict[str, str]:
    begin = datetime.fromtimestamp(hour, UTC)
    month = begin.replace(day=1, hour=0)
    next_month = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    return {
        "ChargePeriodStart": _iso(begin),
        "ChargePeriodEnd": _iso(datetime.fromtimestamp(hour + HOUR_S, UTC)),
        "BillingPeriodStart": _iso(month),
        "BillingPeriodEnd": _iso(next_month),
    }


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _number(value: Decimal) -> str:
    """Return a number as a decimal to nine places at most, and without an exponent."""
    whole, _, places = f"{value:.9f}".partition(".")
    return f"{whole}.{places.rstrip('0') or '0'}"

"""PCORnet CDM: diagnoses, procedures, prescriptions and laboratory results, each row with the type of its code.

The signs of the types are those of the CDM's value sets (versions 4 to 7). OT (other) is a local code; NI, UN and no sign
say that the type is not known: such codes get the configured system too.
"""

from __future__ import annotations

from site_agent.sections import Data
from site_agent.sources.relational import CodeColumn, RelationalSource, TableMap

_LOCAL = {"OT": "", "NI": "", "UN": "", "": ""}

DX_TYPES = {"09": "ICD9CM", "10": "ICD10CM", "11": "ICD11CM", "SM": "SNOMEDCT", **_LOCAL}
PX_TYPES = {
    "09": "ICD9PROC",
    "10": "ICD10PCS",
    "11": "ICD11PCS",
    "CH": "CPT",
    "C2": "CPT",
    "C3": "CPT",
    "C4": "CPT",
    "HC": "HCPCS",
    "H3": "HCPCS",
    "LC": "LOINC",
    "ND": "NDC",
    "RE": "REVENUE",
    **_LOCAL,
}
# CH means CPT or HCPCS; only HCPCS codes begin with a letter.
_HCPCS = ("CH", r"[A-Za-z]\d{4}", "HCPCS")

PCORNET_TABLES = (
    TableMap(
        table="diagnosis",
        patient="patid",
        dates=("dx_date", "admit_date"),
        codes=(CodeColumn("dx", system_column="dx_type", systems=DX_TYPES),),
        domain="condition",
    ),
    TableMap(
        table="procedures",
        patient="patid",
        dates=("px_date",),
        codes=(CodeColumn("px", system_column="px_type", systems=PX_TYPES, alike=(_HCPCS,)),),
        domain="procedure",
    ),
    TableMap(
        table="prescribing",
        patient="patid",
        dates=("rx_order_date",),
        codes=(CodeColumn("rxnorm_cui", system="RXNORM"),),
        domain="drug",
    ),
    TableMap(
        table="lab_result_cm",
        patient="patid",
        dates=("specimen_date", "result_date"),
        codes=(CodeColumn("lab_loinc", system="LOINC"),),
        domain="measurement",
    ),
)


class PcornetSource(RelationalSource):
    """Events of a PCORnet database.

    Args:
        data: database, schema, domains and code systems.
    """

    def __init__(self, data: Data) -> None:
        super().__init__(data, PCORNET_TABLES)

"""Abbreviations of electronic health records, written out, so that names of two hospitals have words in common.

The tables are our own. An abbreviation that means two things in one kind of name (MS, RA, PT, CA, OD) stands in none of
them: a wrong word is worse than an unknown one. Sizes and units (mg/mL, mEq) stay as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from protocol.canonical import digest
from protocol.vocabulary import Category

_GENERAL: Final = """
w with | w/ with | w/o without | wo without | w/out without | d/t due to | s/p status post | h/o history of
hx history | fhx family history | phx personal history | pmh past medical history | c/w consistent with | r/t related to
unspec unspecified | unsp unspecified | uns unspecified | unspf unspecified | nos unspecified
nec not elsewhere classified | oth other | spec specified | spcf specified | b/l bilateral | bilat bilateral
unilat unilateral | lt left | rt right | ant anterior | lat lateral | dist distal | prox proximal
upr upper | lwr lower | ext external | mult multiple | prim primary | init initial | subs subsequent | subseq subsequent
encntr encounter | prev previous | assoc associated | incl including | excl excluding | approx approximately | exam examination
eval evaluation | abn abnormal | abnorm abnormal | abnml abnormal | nl normal | incr increased | decr decreased | def deficiency
ac acute | acu acute | chr chronic | chron chronic | sev severe | mod moderate | temp temporary | recur recurrent
abd abdominal | abdom abdominal | card cardiac | hrt heart | pulm pulmonary | resp respiratory | ren renal
kid kidney | hep hepatic | hepat hepatic | gastr gastric | esoph esophageal | duod duodenal | intest intestinal
bld blood | vasc vascular | ven venous | art artery | cor coronary | cereb cerebral | cerebr cerebral | neuro neurological
musc muscular | skel skeletal | jt joint | shldr shoulder | shlder shoulder | thor thoracic | lumb lumbar | cerv cervical
uter uterine | ovar ovarian | vag vaginal | pelv pelvic | preg pregnancy | postop postoperative | preop preoperative
periph peripheral | infect infection | infl inflammation | inflam inflammation
gi gastrointestinal | gu genitourinary | cns central nervous system | cv cardiovascular | cvs cardiovascular system
ent ear nose and throat | rle right lower extremity | lle left lower extremity
rue right upper extremity | lue left upper extremity | ruq right upper quadrant | luq left upper quadrant
rlq right lower quadrant | llq left lower quadrant | cxr chest x-ray | ekg electrocardiogram | ecg electrocardiogram
eeg electroencephalogram | emg electromyography | mri magnetic resonance imaging | tx treatment | rx prescription
"""
"""Of any kind of name."""

_CONDITION: Final = """
dm diabetes mellitus | dm1 type 1 diabetes mellitus | dm2 type 2 diabetes mellitus | dmi type 1 diabetes mellitus
dmii type 2 diabetes mellitus | t1dm type 1 diabetes mellitus | t2dm type 2 diabetes mellitus | t1d type 1 diabetes
t2d type 2 diabetes | iddm insulin dependent diabetes mellitus | niddm non insulin dependent diabetes mellitus
gdm gestational diabetes mellitus | diab diabetes | uncntrl uncontrolled | uncntrld uncontrolled | dka diabetic ketoacidosis
htn hypertension | hyperten hypertension | hypert hypertension | hypertens hypertension | hlp hyperlipidemia
hld hyperlipidemia | chf congestive heart failure | hf heart failure | hfref heart failure with reduced ejection fraction
hfpef heart failure with preserved ejection fraction | cad coronary artery disease | ashd atherosclerotic heart disease
ihd ischemic heart disease | ami acute myocardial infarction | mi myocardial infarction
stemi st elevation myocardial infarction
nstemi non st elevation myocardial infarction | afib atrial fibrillation | af atrial fibrillation
svt supraventricular tachycardia
dvt deep vein thrombosis | pvd peripheral vascular disease | pad peripheral artery disease | cva cerebrovascular accident
tia transient ischemic attack | sah subarachnoid hemorrhage | sdh subdural hematoma | ath atherosclerosis | isch ischemic
infarct infarction | copd chronic obstructive pulmonary disease | osa obstructive sleep apnea | uri upper respiratory infection
urti upper respiratory tract infection | lrti lower respiratory tract infection | ards acute respiratory distress syndrome
pna pneumonia | pneu pneumonia | pneum pneumonia | bronch bronchitis | tb tuberculosis | sob shortness of breath
doe dyspnea on exertion | ckd chronic kidney disease | esrd end stage renal disease | aki acute kidney injury
uti urinary tract infection | bph benign prostatic hyperplasia | gerd gastroesophageal reflux disease
pud peptic ulcer disease | ibs irritable bowel syndrome | ibd inflammatory bowel disease | gib gastrointestinal bleeding
nafld nonalcoholic fatty liver disease | ulc ulcer | hern hernia | obst obstruction | obstr obstruction | perf perforation
hem hemorrhage | hemor hemorrhage | hemorr hemorrhage | hmrg hemorrhage | hemrrg hemorrhage
ptsd post traumatic stress disorder | adhd attention deficit hyperactivity disorder | mdd major depressive disorder
gad generalized anxiety disorder | ocd obsessive compulsive disorder | bipol bipolar | depr depressive | depress depressive
schizo schizophrenia | psychos psychosis | etoh alcohol | alc alcohol | dep dependence | depend dependence
sud substance use disorder | intox intoxication | hiv human immunodeficiency virus | hcv hepatitis c virus | hbv hepatitis b virus
hpv human papillomavirus | mrsa methicillin resistant staphylococcus aureus | staph staphylococcus | strep streptococcus
pos positive | neg negative | hnp herniated nucleus pulposus | djd degenerative joint disease | ddd degenerative disc disease
lbp low back pain | oa osteoarthritis | osteoarth osteoarthritis | arthrit arthritis | sle systemic lupus erythematosus
fx fracture | fxs fractures | frac fracture | fract fracture | cl closed | clos closed | clsd closed | opn open
disloc dislocation | dislocat dislocation | lac laceration | lacer laceration | contus contusion | wnd wound | inj injury
brn burn | concuss concussion | loc loss of consciousness | fb foreign body | mva motor vehicle accident
mvc motor vehicle collision | mv motor vehicle | traf traffic | pois poisoning | tox toxic
adv adverse | eff effect | compl complication | complic complication | comp complication | malfunc malfunction | aftcare aftercare
neo neoplasm | neopl neoplasm | neop neoplasm | mal malignant | malig malignant | ben benign | mets metastasis | metast metastatic
lymph lymphoma | leuk leukemia | leukem leukemia | melan melanoma | carc carcinoma | aml acute myeloid leukemia
cml chronic myeloid leukemia | cll chronic lymphocytic leukemia | nhl non hodgkin lymphoma | rmsn remission | remiss remission
rmsion remission | del delivery | deliv delivery | antepart antepartum | antepar antepartum | postpart postpartum
p/p postpartum | nb newborn | fet fetal | abort abortion | spon spontaneous | pih pregnancy induced hypertension
iufd intrauterine fetal death | congen congenital | cong congenital | anom anomaly | hered hereditary | acq acquired
trauma traumatic | traum traumatic | path pathological | pathol pathological | degen degenerative | deg degree
dis disease | dz disease | disord disorder | disrd disorder | d/o disorder | syn syndrome | synd syndrome
sx symptoms | insuff insufficiency | fail failure | react reaction | allerg allergy | les lesion
sten stenosis | stenos stenosis | occl occlusion | thromb thrombosis | embol embolism | aneur aneurysm | malform malformation
neph nephropathy | neurop neuropathy | retinop retinopathy | arthrop arthropathy | myop myopathy | enceph encephalopathy
n/v nausea and vomiting | fuo fever of unknown origin | ams altered mental status
fh family history | scr screening | screen screening | vacc vaccination | immun immunization
"""
_LOWER: Final = "l left | r right"
"""Of conditions and procedures, in small letters only: L is also lumbar and litre."""

_PROCEDURE: Final = """
cabg coronary artery bypass graft | pci percutaneous coronary intervention | ptca percutaneous transluminal coronary angioplasty
tkr total knee replacement | thr total hip replacement | tka total knee arthroplasty | tha total hip arthroplasty
orif open reduction internal fixation | egd esophagogastroduodenoscopy | turp transurethral resection of prostate
bx biopsy | repl replacement | excis excision | incis incision | insert insertion | remov removal | endosc endoscopy
transf transfusion | ther therapy | diag diagnostic | inj injection | cath catheterization
"""
_DRUG: Final = """
tab tablet | tabs tablet | cap capsule | caps capsule | inj injection | soln solution | sol solution | susp suspension
supp suppository | oint ointment | crm cream | syr syrup | elix elixir | pwdr powder | inh inhaler
inhal inhalation | neb nebulizer | gtt drops | gtts drops | opth ophthalmic | ophth ophthalmic | otic ear
sl sublingual | po oral | iv intravenous | im intramuscular | sc subcutaneous | sq subcutaneous | subq subcutaneous
subcut subcutaneous
pr rectal | top topical | ptch patch | er extended release | xr extended release | xl extended release
sr sustained release | cr controlled release | dr delayed release | ec enteric coated | odt orally disintegrating tablet
pf preservative free | vit vitamin | hctz hydrochlorothiazide | asa aspirin | apap acetaminophen | ntg nitroglycerin
mtx methotrexate | tmp trimethoprim | smx sulfamethoxazole | smz sulfamethoxazole | pcn penicillin | nacl sodium chloride
kcl potassium chloride | d5w dextrose 5% in water | lr lactated ringer | hcl hydrochloride
na sodium | sod sodium | pot potassium | mag magnesium | acet acetate | phos phosphate | sulf sulfate | succ succinate
tart tartrate | bicarb bicarbonate | glar glargine | insul insulin | prn as needed | bid twice daily | tid three times daily
"""
_LAB: Final = """
hgb hemoglobin | hct hematocrit | wbc leukocytes | rbc erythrocytes | plt platelets | hba1c hemoglobin a1c
gluc glucose | glu glucose | creat creatinine | crea creatinine | bun urea nitrogen | bili bilirubin | alb albumin
alt alanine aminotransferase | ast aspartate aminotransferase | alp alkaline phosphatase | alkp alkaline phosphatase
ldh lactate dehydrogenase | ck creatine kinase | cpk creatine kinase | tsh thyrotropin | ldl low density lipoprotein cholesterol
hdl high density lipoprotein cholesterol | chol cholesterol | trig triglyceride | trop troponin | bnp natriuretic peptide b
crp c reactive protein | esr erythrocyte sedimentation rate | ptt activated partial thromboplastin time
aptt activated partial thromboplastin time | inr international normalized ratio | psa prostate specific antigen
ferr ferritin | tibc iron binding capacity | vit vitamin | mcv mean corpuscular volume | mch mean corpuscular hemoglobin
mchc mean corpuscular hemoglobin concentration | rdw erythrocyte distribution width | mpv mean platelet volume
neut neutrophils | lymph lymphocytes | mono monocytes | eos eosinophils | baso basophils | diff differential
ua urinalysis | ur urine | ser serum | plas plasma | bld blood | csf cerebrospinal fluid | cult culture | cx culture
ab antibody | ag antigen | qual qualitative | quant quantitative | scrn screen | spo2 oxygen saturation | sao2 oxygen saturation
bp blood pressure | sbp systolic blood pressure | dbp diastolic blood pressure | wt weight | bmi body mass index
egfr estimated glomerular filtration rate | gfr glomerular filtration rate
"""
_PHRASES: Final = {
    "dm ii": "type 2 diabetes mellitus",
    "dm i": "type 1 diabetes mellitus",
    "dm type 2": "type 2 diabetes mellitus",
    "dm type 1": "type 1 diabetes mellitus",
    "a fib": "atrial fibrillation",
    "type ii": "type 2",
    "type i": "type 1",
}


def _table(text: str) -> dict[str, str]:
    rows = (row.split(None, 1) for row in text.replace("\n", "|").split("|") if row.strip())
    return {short: " ".join(long.split()) for short, long in rows}


_SHARED: Final = _table(_GENERAL)
_LOWER_TABLE: Final = _table(_LOWER)
_OF: Final[Mapping[Category, Mapping[str, str]]] = {
    "condition": _SHARED | _table(_CONDITION),
    "procedure": _SHARED | _table(_CONDITION) | _table(_PROCEDURE),
    "drug": _SHARED | _table(_DRUG),
    "lab": _SHARED | _table(_LAB),
    "observation": _SHARED | _table(_LAB),
    "other": _SHARED,
}
_SIDED: Final = frozenset({"condition", "procedure"})
_WORD: Final = re.compile(r"[^\W\d_]+\d?[^\W\d_]*(?:/[^\W\d_]+)*/?")
"""Letters with at most a digit among them, joined by slashes: w/o, d/t, T2DM, HbA1c; sizes and units do not change."""
_PHRASE: Final = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, _PHRASES))})(?!\w)", re.IGNORECASE)

TABLE_DIGEST: Final = digest([_GENERAL, _CONDITION, _LOWER, _PROCEDURE, _DRUG, _LAB, _PHRASES])
"""Part of every encoder's digest: other tables make other vectors."""


def expand(text: str, category: Category = "condition") -> str:
    """A name with its abbreviations written out; words that no table has stay as they are.

    `expand("DMII wo cmp nt st uncntr")` is "type 2 diabetes mellitus without cmp nt st uncntr". A compound that no table
    has is taken apart at its slashes. `inj` is an injection in a drug's name and an injury in a condition's.

    Args:
        text: of any length and case.
        category: what the code is; it chooses the tables.

    Law: `expand(expand(t, c), c) == expand(t, c)`: no expansion holds an abbreviation.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    plain = _PHRASE.sub(lambda m: _PHRASES[m[0].lower()], plain)

    def written_out(match: re.Match[str]) -> str:
        whole = _lookup(match[0], category)
        if whole is not None:
            return whole
        return "/".join(_lookup(part, category) or part for part in match[0].split("/"))

    return _WORD.sub(written_out, plain)


def _lookup(word: str, category: Category) -> str | None:
    if category in _SIDED and word in _LOWER_TABLE:
        return _LOWER_TABLE[word]
    return _OF[category].get(word.casefold())

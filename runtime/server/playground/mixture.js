// Who answers: one expert, one that is described, a mixture of several by sliders, or "auto".

const MIXTURE = "\u0000mixture";
const DESCRIBED = "\u0000described";

// Whether a model can be a part of a mixture.
const isExpert = (model) => ["expert", "lora"].includes(model.zweave.kind);

export class Mixture {
  // onChange: another choice, or other weights. onWeights: other weights.
  constructor(elements, onChange, onWeights) {
    Object.assign(this, elements);
    this.weights = new Map();
    this.models = [];
    this.expert.addEventListener("change", () => this.show(onChange));
    this.add.addEventListener("change", () => {
      if (this.add.value) this.slide(this.add.value, 0.5);
      this.add.value = "";
      onChange();
      onWeights();
    });
    this.task.addEventListener("input", onChange);
    this.onChange = onChange;
    this.onWeights = onWeights;
  }

  offer(models) {
    this.models = models;
    const experts = models.filter(isExpert);
    const others = models.filter((model) => ["alias", "auto"].includes(model.zweave.kind));
    this.expert.replaceChildren(
      ...[...experts, ...others].map((model) => new Option(model.id, model.id)),
      new Option("a mixture of several", MIXTURE),
      ...(models.some((model) => model.zweave.describes) ? [new Option("described in words", DESCRIBED)] : []),
    );
    this.add.replaceChildren(new Option("choose one", ""), ...experts.map((model) => new Option(model.id, model.id)));
    this.show(this.onChange);
  }

  show(onChange) {
    const model = this.models.find((one) => one.id === this.expert.value);
    this.mixture.hidden = this.expert.value !== MIXTURE;
    this.taskBox.hidden = this.expert.value !== DESCRIBED;
    const asked = model?.zweave.own_words ? " It is asked each message by itself, in the words it was trained on." : "";
    const rank = model?.zweave.rank ? ` of rank ${model.zweave.rank}` : "";
    const kind = model?.zweave.kind === "lora" ? `LoRA${rank}. ` : "";
    this.description.textContent = kind + (model?.zweave.description ?? "") + asked;
    onChange();
  }

  // A slider that sets an expert's weight.
  slide(name, weight) {
    if (this.weights.has(name)) return;
    this.weights.set(name, weight);
    const label = document.createElement("label");
    const shown = document.createElement("output");
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: -0.5, max: 1.5, step: 0.05, value: weight, id: `weight-${name}` });
    label.htmlFor = slider.id;
    shown.textContent = weight.toFixed(2);
    label.append(`${name} `, shown);
    slider.addEventListener("input", () => {
      this.weights.set(name, Number(slider.value));
      shown.textContent = Number(slider.value).toFixed(2);
      this.onChange();
      this.onWeights();
    });
    this.sliders.append(label, slider);
  }

  // The fields of a body.
  get fields() {
    if (this.expert.value === DESCRIBED) return { model: `describe:${this.task.value}` };
    if (this.expert.value !== MIXTURE) return { model: this.expert.value || "base" };
    const parts = [...this.weights].filter(([, weight]) => weight !== 0);
    return parts.length ? { model: "base", expert: Object.fromEntries(parts) } : { model: "base" };
  }

  get title() {
    const { model, expert } = this.fields;
    if (this.expert.value === DESCRIBED) return this.task.value.trim() || "a description that is to be written";
    if (this.expert.value === MIXTURE && !expert) return "a mixture of nothing yet";
    return expert ? Object.entries(expert).map(([name, weight]) => `${weight.toFixed(2)} ${name}`).join(" + ") : model;
  }

  // Whether the conversation before a message is left out.
  get asksAlone() {
    if (this.expert.value === DESCRIBED) return true;
    return this.models.find((one) => one.id === this.expert.value)?.zweave.own_words ?? false;
  }

  // The expert whose changes can be shown, if it is one alone.
  get single() {
    const model = this.models.find((one) => one.id === this.expert.value);
    return model && isExpert(model) ? model.id : null;
  }
}

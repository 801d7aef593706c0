// One column of the chat: what was said, and how the answer came about.

export class Conversation {
  constructor(log, facts, error) {
    this.log = log;
    this.facts = facts;
    this.error = error;
    this.messages = [];
    this.running = null;
  }

  clear() {
    this.messages = [];
    this.log.replaceChildren();
    this.facts.textContent = this.error.textContent = "";
  }

  say(role, content) {
    const line = document.createElement("p");
    line.className = role;
    line.textContent = content;
    this.log.append(line);
    this.log.scrollTop = this.log.scrollHeight;
    return line;
  }

  // Shows an answer as it comes; returns what is told of it. `running` is the id of its response meanwhile.
  async answer(prompt, chunks) {
    this.messages.push({ role: "user", content: prompt });
    this.say("user", prompt);
    const line = this.say("assistant", "");
    const told = { sent: performance.now(), first: null, done: null, usage: null, zweave: null };
    let text = "";
    this.error.textContent = "";
    // What comes is read out when it is complete, not token by token.
    this.log.setAttribute("aria-busy", "true");
    try {
      for await (const chunk of chunks(this.messages)) {
        const choice = chunk.choices[0];
        this.running = chunk.id;
        if (chunk.usage) told.usage = chunk.usage;
        if (!choice) continue;
        if (choice.delta.content) {
          told.first ??= performance.now();
          text += choice.delta.content;
          line.textContent = text.trimStart();
          this.log.scrollTop = this.log.scrollHeight;
        }
        if (choice.zweave) told.zweave = choice.zweave;
      }
    } catch (error) {
      if (error.name !== "AbortError") this.error.textContent = error.message;
      throw error;
    } finally {
      this.running = null;
      this.log.removeAttribute("aria-busy");
      told.done = performance.now();
      told.first ??= told.done;
      // A question without an answer is no part of the conversation.
      if (text) this.messages.push({ role: "assistant", content: text });
      else this.messages.pop();
      this.facts.textContent = text ? described(told) : "";
    }
    return told;
  }
}

function described({ sent, first, done, usage, zweave }) {
  const parts = [`first token ${Math.round(first - sent)} ms`];
  if (usage) {
    const seconds = Math.max((done - first) / 1000, 1e-3);
    parts.push(`${usage.completion_tokens} token${usage.completion_tokens === 1 ? "" : "s"}`);
    if (usage.completion_tokens > 1) parts.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
    parts.push(`${usage.prompt_tokens} of prompt`);
  }
  if (zweave?.reused_tokens) parts.push(`${zweave.reused_tokens} reused (${zweave.reuse.replaceAll("_", " ")})`);
  if (zweave?.resumed_tokens) parts.push(`${zweave.resumed_tokens} resumed`);
  return parts.join(" · ");
}

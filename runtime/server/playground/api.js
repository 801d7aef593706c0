// The server's API: models, an expert's z, and answers as they come and change.

const KEY = "zweave-api-key";

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (value) => sessionStorage.setItem(KEY, value);

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is it still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answered with status ${response.status}.`;
  throw Object.assign(new Error(response.status === 401 ? wantsKey() : message), { status: response.status });
}

const wantsKey = () =>
  key() ? "The server does not know this API key: enter another." : "The server wants an API key: enter it under Options.";

export const models = async () => (await (await call("v1/models")).json()).data;

export const z = async (name) => (await call(`v1/experts/${name.split("/").map(encodeURIComponent).join("/")}/z`)).json();

// Changes who computes the next tokens of a streamed answer; one that has just ended stays as it is.
export async function rescale(id, { model, expert }) {
  const body = JSON.stringify(expert ? { expert } : { model });
  try {
    await call(`v1/requests/${encodeURIComponent(id)}/rescale`, { method: "POST", body });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

// Yields the chunks of a streamed answer.
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read().catch(cutOff);
    if (done) cutOff();
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

function cutOff(error) {
  if (error?.name === "AbortError") throw error;
  throw new Error("The server stopped before the answer was complete.");
}

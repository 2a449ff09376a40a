// Requests, and the outbox: an answer stays in it until the server has said that it is on the disk.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  const content = await response.json().catch(() => null);
  if (content === null) throw new TypeError("the reply was cut off");
  if (!response.ok) throw new ServerError(response.status, content.error);
  return content;
}

// A browser has crypto.randomUUID at https and on localhost alone, and this page is served in a network by http too.
export function newUuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

const WAITS = [500, 1000, 2000, 4000, 8000];
const KEPT = "hf-rlhf-answer:";

// Sends one event after the other. `holding` says which tasks the page has; `on` hears of what happens.
export class Outbox {
  constructor(annotator, { holding, saved, refused, state }) {
    Object.assign(this, { annotator, holding, saved, refused, state });
    this.events = kept(annotator);
    this.tries = 0;
    this.running = null;
    addEventListener("online", () => this.wake?.());
  }

  add(event) {
    this.events.push(event);
    keep(event);
    this.flush();
  }

  flush() {
    this.running ??= this.send().finally(() => (this.running = null));
    return this.running;
  }

  async send() {
    while (this.events.length) {
      const event = this.events[0];
      if (!this.tries) this.state("saving", this.events.length);
      try {
        const others = this.events.slice(1).map((each) => each.task);
        const reply = await ask("/api/events", { ...event, holding: [...this.holding(), ...others] });
        this.drop(event);
        this.saved(event, reply);
      } catch (error) {
        if (error instanceof ServerError && error.status < 500 && error.status !== 403) {
          this.drop(event);
          this.refused(event, error.message);
        } else {
          const now = { 403: "closed", 507: "unsaved" }[error.status] ?? "waiting";
          this.state(now, this.events.length, error.message);
          await this.pause();
        }
      }
    }
    this.state("saved", 0);
  }

  drop(event) {
    this.events.shift();
    this.tries = 0;
    forget(event);
  }

  pause() {
    const wait = WAITS[Math.min(this.tries, WAITS.length - 1)];
    this.tries += 1;
    return new Promise((resolve) => {
      this.wake = resolve;
      setTimeout(resolve, wait);
    });
  }
}

// A closed tab must not lose an answer that was not sent yet. Storage may be switched off; then the tab is all.
function keep(event) {
  try {
    localStorage.setItem(KEPT + event.uuid, JSON.stringify(event));
  } catch { /* private windows */ }
}

function forget(event) {
  try {
    localStorage.removeItem(KEPT + event.uuid);
  } catch { /* private windows */ }
}

function kept(annotator) {
  try {
    const found = Object.keys(localStorage).filter((key) => key.startsWith(KEPT));
    const events = found.map((key) => JSON.parse(localStorage.getItem(key)));
    return events.filter((event) => event?.annotator === annotator).sort((a, b) => a.at - b.at);
  } catch {
    return [];
  }
}

// Puts the page together: asks for the key if one is needed, then chat and live view.

import { ApiError, keepKey, request } from "./api.js";
import { Chat } from "./chat.js";
import { runCrowd } from "./crowd.js";
import { Live, status } from "./live.js";

const byId = (id) => document.getElementById(id);
let maxLength = 2048;
let isFollowing = false;

async function start() {
  try {
    const { data } = await (await request("/v1/models")).json();
    maxLength = data[0].max_model_len;
    byId("model").textContent = `${data[0].id} · up to ${maxLength} tokens`;
    document.title = `${data[0].id} · Orcinus`;
  } catch (error) {
    refused(error);
    return;
  }
  if (isFollowing) return;
  isFollowing = true;
  await live.follow();
  isFollowing = false;
}

function refused(error) {
  if (error instanceof ApiError && error.status === 401) {
    if (sessionStorage.length) byId("key-note").textContent = "The key was not accepted. Try another one.";
    status("lost", "a key is needed");
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
  } else if (!isFollowing) {
    status("lost", "the server can't be reached; reload to try again");
  }
}

async function crowd() {
  const note = byId("crowd-note");
  byId("crowd").disabled = true;
  try {
    await runCrowd(maxLength, (ended, total) => {
      note.textContent = ended < total ? `${ended} of ${total} requests answered` : `All ${total} requests answered.`;
    });
  } catch (error) {
    note.textContent = `The crowd was stopped: ${error.message}`;
    refused(error);
  } finally {
    byId("crowd").disabled = false;
  }
}

const live = new Live(refused);
new Chat((eventId) => live.own(eventId), refused);
byId("crowd").addEventListener("click", crowd);
byId("key-dialog").addEventListener("cancel", (event) => event.preventDefault());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-dialog").close();
  start();
});
start();

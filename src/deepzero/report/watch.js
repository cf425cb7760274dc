"use strict";
// Asks the program that made this page for news, and puts them in without moving what is being looked at.
const live = document.getElementById("live");
const state = document.getElementById("state");

function openKeys() {
  const seen = new Map();
  return [...live.querySelectorAll("details")].map((element) => {
    const section = element.closest("section");
    const key = `${section ? section.id : ""}|${element.querySelector("summary").textContent.replace(/\d+/g, "#")}`;
    seen.set(key, (seen.get(key) || 0) + 1);
    return [element, `${key}|${seen.get(key)}`];
  });
}

async function look() {
  let again = true;
  try {
    const answer = await fetch(`content?seen=${live.dataset.seen}`, { cache: "no-store" });
    if (answer.status === 200) {
      const open = new Set(openKeys().filter(([element]) => element.open).map(([, key]) => key));
      const at = window.scrollY;
      live.innerHTML = await answer.text();
      live.dataset.seen = answer.headers.get("X-Seen");
      for (const [element, key] of openKeys()) element.open = open.has(key);
      window.scrollTo(0, at);
    }
    const told = decodeURIComponent(answer.headers.get("X-State"));
    if (state.textContent !== told) state.textContent = told;
    again = answer.headers.get("X-Done") !== "1";
  } catch (error) {
    state.textContent = "The program that watches has ended; this is the last it told.";
    again = false;
  }
  if (again) setTimeout(look, 1000 * Number(live.dataset.interval));
}

if (live.dataset.done !== "1") setTimeout(look, 1000 * Number(live.dataset.interval));

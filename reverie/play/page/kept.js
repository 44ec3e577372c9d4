// A session outlives its page: it is kept in the tab, so that a reload or a lost connection goes on with it.

const place = (name) => `reverie ${location.pathname} ${name}`; // one origin may serve several worlds

// Returns {hash, text, live}, or null: the address's part after '#' when it was kept, the session as a link, real time.
export function kept(name) {
  try {
    const found = JSON.parse(sessionStorage.getItem(place(name)));
    return typeof found?.text === "string" ? found : null;
  } catch {
    return null; // no storage here, or nothing that this page wrote
  }
}

export function keep(name, session) {
  try {
    sessionStorage.setItem(place(name), JSON.stringify(session));
  } catch {
    // no storage, or no room for a long session: then a reload begins anew
  }
}

// Who of the team is online, in Vue. With a build step each of these would be a .vue file.

import { createApp, ref } from 'vue';

import { createPresence, usePresence, usePresenceClient, usePresenceState } from '/static/presence-vue.js';
import { CHOICES, comeIn, people, words } from '/examples/team/team.js';

const Person = {
  props: ['id', 'name'],
  setup(props) {
    return { status: usePresence(() => props.id), words };
  },
  template: `
    <li :data-status="status?.status ?? 'unknown'">
      <span class="dot"></span><b>{{ name }}</b><small>{{ words(status) }}</small>
    </li>`,
};

const Mine = {
  setup() {
    const presence = usePresenceClient();
    const [status, text, problem] = [ref('online'), ref(''), ref('')];
    async function say() {
      try {
        await presence.setStatus(status.value, { text: text.value });
        problem.value = '';
      } catch (error) {
        problem.value = error.message;
      }
    }
    return { CHOICES, status, text, problem, say };
  },
  template: `
    <form @submit.prevent="say">
      <select v-model="status" aria-label="Your status">
        <option v-for="(label, value) in CHOICES" :key="value" :value="value">{{ label }}</option>
      </select>
      <input v-model="text" aria-label="What you are doing" maxlength="128" placeholder="What are you doing?">
      <button>Say so</button>
      <p v-if="problem" role="alert">{{ problem }}</p>
    </form>`,
};

const Team = {
  components: { Person, Mine },
  setup() {
    return { people, state: usePresenceState() };
  },
  template: `
    <h1>Team</h1>
    <ul><Person v-for="{ id, name } in people" :key="id" :id="id" :name="name" /></ul>
    <Mine />
    <p role="status">{{ state === 'connected' ? '' : state + ' …' }}</p>`,
};

const Who = {
  setup() {
    const enter = (id) => {
      who.unmount();
      createApp(Team).use(createPresence(comeIn(id))).mount('#app');
    };
    return { people, enter };
  },
  template: `
    <div class="who">
      <h1>Who are you?</h1>
      <button v-for="{ id, name } in people" :key="id" @click="enter(id)">{{ name }}</button>
    </div>`,
};

const who = createApp(Who);
who.mount('#app');
